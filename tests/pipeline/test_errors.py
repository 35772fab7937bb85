from pipeline.errors import UserError, root_cause


def test_the_first_error_that_is_meant_is_found_else_the_innermost():
    inner, meant, outer = KeyError("inner"), UserError("meant"), RuntimeError("outer")
    outer.__cause__, meant.__cause__ = meant, inner
    assert root_cause(outer, UserError) is meant
    assert root_cause(outer) is inner


def test_errors_that_are_causes_of_each_other_come_to_an_end():
    one, other = RuntimeError("one"), ValueError("other")
    one.cause, other.__cause__ = other, one
    assert root_cause(one, UserError) in (one, other)
    one.cause = one
    assert root_cause(one) is one


def test_what_ray_makes_of_an_error_that_is_meant_is_still_one_line():
    from ray.exceptions import RayTaskError

    meant = UserError("no such shard: name another")
    wrapped = RayTaskError("survey", "Traceback (most recent call last):\n  ...", meant).as_instanceof_cause()
    assert isinstance(wrapped, UserError) and "\n" in str(wrapped)
    assert str(root_cause(wrapped, UserError)) == "no such shard: name another"
