"""The references of commands and keys are what their code says."""

import importlib.util
from pathlib import Path
from types import ModuleType

BUILD = Path(__file__).parents[2] / "docs" / "build.py"


def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    module = build()

    assert module.PAGE.read_text() == module.page(), "run: make docs"


def test_the_keys_are_up_to_date() -> None:
    module = build()

    assert module.CONFIGURATION.read_text() == module.configuration_page(), "run: make docs"
