"""What roles and scopes allow together."""

import pytest

from updraft.model.access import Principal, Role, Scope

ME, OTHER = "me", "other"


@pytest.mark.parametrize(
    ("role", "scope", "run", "own", "others"),
    [
        (Role.VIEWER, Scope.ADMIN, False, False, False),
        (Role.MEMBER, Scope.READ, False, False, False),
        (Role.MEMBER, Scope.RUN, True, True, False),
        (Role.MEMBER, Scope.ADMIN, True, True, False),
        (Role.ADMIN, Scope.READ, False, False, False),
        (Role.ADMIN, Scope.RUN, True, True, True),
        (Role.ADMIN, Scope.ADMIN, True, True, True),
    ],
)
def test_a_role_and_a_scope_allow_the_lesser(
    role: Role, scope: Scope, run: bool, own: bool, others: bool
) -> None:
    who = Principal(ME, role=role, scope=scope)
    assert who.may_view()
    assert (who.may_run(), who.may_change(ME), who.may_change(OTHER)) == (run, own, others)
    assert who.may_administer_project() == (role is Role.ADMIN and scope is Scope.ADMIN)
    assert not who.may_administer()


def test_a_server_admin_administers_with_a_full_and_free_credential_only() -> None:
    assert Principal(ME, server_admin=True).may_administer()
    assert not Principal(ME, server_admin=True, scope=Scope.RUN).may_administer()
    assert not Principal(ME, server_admin=True, confined=True).may_administer()


def test_where_one_asks_from_is_no_part_of_who_one_is() -> None:
    assert Principal(ME, peer="192.0.2.1", credential="a") == Principal(ME)
