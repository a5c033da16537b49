"""What fuzz tests of command lines have in common: words that are odd anywhere, and what must come of any words."""

from hypothesis import strategies as st


def odd(*words: str) -> st.SearchStrategy[str]:
    """Words that look like numbers, nothing or a mapping, and those given."""
    return st.sampled_from(["", "nan", "inf", "-1", "none", "true", "{", "a" * 300, *words])


def assert_taken_or_refused(prog: str, status: object, errors: str) -> None:
    """The exit status says it, and a refusal is one line of standard error."""
    assert status in (0, 2), errors
    assert "Traceback" not in errors
    if status == 2:
        assert [line.startswith(f"{prog}: error: ") for line in errors.splitlines()].count(True) == 1, errors
