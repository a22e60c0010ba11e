"""Coverage-guided fuzzing of all that reads a peer's bytes (``tests.hostile.fuzz``)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris has no wheel for this Python or this machine",
)

ROOT = Path(__file__).parents[2]


def fuzz(folder: Path, *options: str, seconds: float = 100) -> None:
    """Fuzz to the end of its runs."""
    inputs = folder / "inputs"
    inputs.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz", inputs, "-max_len=2048", "-timeout=20",
         "-rss_limit_mb=1024", f"-artifact_prefix={folder}/", *options],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False,
    )  # fmt: skip
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, said[-6000:]
    assert "Done" in said, said[-6000:]


def test_no_bytes_do_more_than_be_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, "-runs=20000", "-seed=7")


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_no_bytes_do_more_than_be_refused_for_long(tmp_path: Path) -> None:
    """Another seed each time, which libFuzzer tells."""
    fuzz(tmp_path, "-max_total_time=600", seconds=1800)
