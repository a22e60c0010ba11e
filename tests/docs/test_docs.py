"""What the documentation shows is what happens."""

import re
import sys
from pathlib import Path

import pytest

from tests.fidelity.programs import PROGRAMS
from updraft import configuration, settings
from updraft.testing.instance import instance

from .examples import Ids, Step, steps, unmarked
from .shell import Shell

ROOT = Path(__file__).parents[2]
RUN = ("quickstart.md", "arrays.md", "flows.md")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / name for name in RUN))
ALL_PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_do_what_they_show(page: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    ids = Ids()
    with instance(tmp_path / "home") as made:
        commands = Path(sys.executable).parent
        path = f"{commands}:{made.environment['PATH']}"
        environment = {
            **{name: value for name, value in made.environment.items() if name != "UPDRAFT_FAULTS"},
            "PATH": path,
            "COLUMNS": "100",
            "OMP_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
        }
        with Shell(tmp_path, environment) as shell:
            for step in steps(page):
                ids.check(step, shell.run(ids.in_command(step.command)))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_example_says_whether_it_is_run(page: Path) -> None:
    assert unmarked(page) == []


def test_the_page_of_exceptions_names_those_of_the_fidelity_table() -> None:
    page = (ROOT / "docs" / "as-if-local.md").read_text()
    listed = page.partition("<!-- exceptions -->")[2].partition("<!-- /exceptions -->")[0]
    named = re.findall(r"`((?:pipes|pty|shell)-[^`]+)`", listed)
    assert sorted(named) == sorted(program.id for program in PROGRAMS if program.exception)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [
        target for target in targets if "://" not in target and not (page.parent / target).exists()
    ]
    assert missing == []


def test_the_configuration_page_s_examples_are_taken(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    defaults, team = (part.partition("```")[0] for part in page.split("```toml\n")[1:])
    where = settings.folders({"UPDRAFT_HOME": str(tmp_path)})
    file = Path(where.config_file)
    file.parent.mkdir()
    nothing = configuration.load(where)
    file.write_text(defaults)
    assert configuration.load(where) == nothing, "it says that those are the defaults"
    file.write_text(team)
    assert configuration.load(where).server.local_pool is False


def test_ids_are_the_same_wherever_they_are_shown() -> None:
    ids = Ids()
    ids.check(Step(1, "ubatch true", "k7m2p9x4ce\n"), "abcdefgh12\n")
    assert ids.in_command("updraft logs k7m --tail 3 k7m2p9x4ce keep") == (
        "updraft logs abc --tail 3 abcdefgh12 keep"
    )
    ids.check(Step(2, "", "k7m2p9x4ce  SUCCESS  1.5 s\n…\n"), "abcdefgh12   SUCCESS 20 ms\nx\ny\n")
    with pytest.raises(AssertionError, match="line 3"):
        ids.check(Step(3, "", "k7m2p9x4ce\n"), "abcdefgh13\n")
