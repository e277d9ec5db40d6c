"""Names of sessions, and numbers that are never given twice."""

import pytest

from cmr.errors import UnknownSessionError
from cmr.memory import SessionTable
from cmr.memory.sessions import NO_SESSION


def test_a_name_keeps_its_number_and_never_gets_it_back() -> None:
    table = SessionTable()
    first = table.create("anna")
    assert table.create("anna") == table.require("anna") == table.find("anna") == first
    other = table.create("ben")
    table.advance(other, 7)
    assert (table.names(), table.name_of(other)) == (["anna", "ben"], "ben")
    assert table.remove("ben") == other
    assert table.create("ben") not in (first, other)
    assert table.names() == ["anna", "ben"]
    assert table.alive([first]) and not table.alive([first, other])


def test_positions_go_on_within_a_session() -> None:
    table = SessionTable()
    anna, ben = table.create("anna"), table.create("ben")
    assert [table.advance(anna, 5), table.advance(ben, 3), table.advance(anna, 2)] == [0, 0, 5]
    assert (table.position(anna), table.position(ben)) == (7, 3)


def test_an_unknown_name_is_an_error_that_names_nobody_else() -> None:
    table = SessionTable()
    assert table.find("anna") == NO_SESSION
    with pytest.raises(UnknownSessionError, match="no session named 'anna' among 0"):
        table.require("anna")
    table.create("ben")
    with pytest.raises(UnknownSessionError, match=r"among 1.*create=True") as caught:
        table.remove("anna")
    assert isinstance(caught.value, KeyError)
    with pytest.raises(UnknownSessionError, match="number 99"):
        table.name_of(99)


@pytest.mark.parametrize("name", ["", None, 3, b"anna"])
def test_a_name_is_a_string_with_something_in_it(name: object) -> None:
    table = SessionTable()
    with pytest.raises(TypeError, match="non-empty string, got"):
        table.create(name)  # type: ignore[arg-type]
    assert table.names() == []
