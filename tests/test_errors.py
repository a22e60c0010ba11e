"""The public errors: their codes are stable, of their own, and on the page that explains them."""

import re

import pytest

from updraft import errors
from updraft.errors import UpdraftError


def tree(root: type[UpdraftError]) -> list[type[UpdraftError]]:
    return [root, *(found for child in root.__subclasses__() for found in tree(child))]


ALL = [error for error in tree(UpdraftError) if error.__module__ == errors.__name__]


def test_every_code_is_one_errors_own() -> None:
    codes = [error.code for error in ALL]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_the_page_shows_the_whole_tree_as_it_is() -> None:
    """Each line: indentation that tells the parent, name, code, HTTP status and exit code."""
    shown: dict[str, tuple[str, int, int, str | None]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        row = re.match(r"([│├└─\s]*)([A-Z]\w+)\s+([a-z_]+)\s+(\d+)\s+(\d+)", line)
        if row is None:
            continue
        depth = len(row[1])
        above = [parent for parent in above if parent[0] < depth]
        parent = above[-1][1] if above else None
        above.append((depth, row[2]))
        shown[row[2]] = (row[3], int(row[4]), int(row[5]), parent)
    assert shown == {
        error.__name__: (
            error.code,
            error.status,
            error.exit_code,
            error.__base__.__name__ if error is not UpdraftError and error.__base__ else None,
        )
        for error in ALL
    }


@pytest.mark.parametrize("error", ALL)
def test_an_error_comes_back_from_its_code(error: type[UpdraftError]) -> None:
    back = errors.from_code(error.code, "what happened")
    assert type(back) is error
    assert back.message == str(back) == "what happened"
    assert error.__doc__


def test_an_error_of_a_newer_release_is_a_plain_failure() -> None:
    back = errors.from_code("from_the_future", "what happened")
    assert type(back) is UpdraftError
    assert (back.message, back.exit_code) == ("what happened", 125)


def test_exit_codes_are_those_that_users_know() -> None:
    assert errors.EXIT_EXPIRED == 124  # timeout(1)
    assert errors.EXIT_FAILURE == 125  # docker run, timeout(1)
    assert errors.EXIT_NOT_EXECUTABLE == 126  # POSIX shell
    assert errors.EXIT_NOT_FOUND == 127
    assert errors.EXIT_CANCELLED == 128 + 15
