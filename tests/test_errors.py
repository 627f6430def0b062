"""Errors carry the exit code that the command line promises."""

from l0runtime import errors


def test_every_error_shares_one_base_class_and_has_a_documented_exit_code() -> None:
    classes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(e, errors.L0RuntimeError) for e in classes)
    assert {e.__name__: e.exit_code for e in classes if e.exit_code != 1} == {"OptionError": 2}
