"""The comparison of two commits' tests finds what is gone, and no move between files."""

from __future__ import annotations

from tests.names import compared, named_in

SOURCE = """
def helper(): ...
def test_one(): ...
async def test_two(): ...
class TestGroup:
    def helper(self): ...
    def test_three(self): ...
class Other:
    def test_four(self): ...
"""


def test_the_named_in_a_module_are_those_that_pytest_runs() -> None:
    assert list(named_in(SOURCE)) == ["test_one", "test_two", "TestGroup.test_three"]


def test_a_moved_test_is_neither_gone_nor_new_and_one_of_two_that_went_is_gone() -> None:
    before = {"test_moved": ["a.py"], "test_gone": ["a.py"], "test_twice": ["a.py", "b.py"]}
    after = {"test_moved": ["b.py"], "test_twice": ["b.py"], "test_new": ["b.py"]}
    assert compared(before, after) == ["- test_gone  (a.py)", "- test_twice  (a.py)", "+ test_new  (b.py)"]
