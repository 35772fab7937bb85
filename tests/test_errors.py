import pytest

from wordsworth.pipeline.errors import UserError, root_cause, without_secrets, worker_of


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


def test_what_an_actors_constructor_had_to_tell_is_found_in_rays_text():
    from ray.data.exceptions import SystemException
    from ray.exceptions import RayActorError

    task = "The actor died because of an error raised in its creation task"
    text = f"{task}\n  File x\npipeline.errors.UserError: no GPU: buy one"
    died = RayActorError(error_msg=text, actor_init_failed=True)
    died.__cause__ = SystemException()  # as Ray Data raises what it does not know
    assert str(root_cause(died, UserError)) == "no GPU: buy one" and isinstance(
        root_cause(died, UserError), UserError
    )
    other = RayActorError(error_msg="the node died")
    other.__cause__ = SystemException()
    assert root_cause(other, UserError) is other, "and not an exception without a word"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("403, url='http://h:80/a.jpg?X-Amz-Signature=CANARY'", "403, url='http://h:80/a.jpg'"),
        (
            "http://h/a b.jpg?CANARY and HTTPS://k/?CANARY is no",
            "http://h/a b.jpg and HTTPS://k/ is no",
        ),
        ("cannot read http://user:CANARY@h/x", "cannot read http://h/x"),
        ("s3://b/what?.jpg: is it there?", "s3://b/what?.jpg: is it there?"),
    ],
)
def test_the_line_of_an_error_names_no_query_and_no_password_of_a_web_server(text, shown):
    assert str(UserError(text)) == without_secrets(text) == shown


def test_the_worker_of_an_error_is_found_below_what_wraps_it():
    class RayTaskError(Exception):
        """Stand for Ray's wrapper, whose text alone says where."""

    text = "\x1b[36mray::Map()\x1b[39m (pid=4711, ip=10.0.0.7, actor_id=ab, repr=<x>)\n  ZeroDivisionError: x"
    error = ValueError("outer")
    error.__cause__ = RayTaskError(text)
    assert worker_of(error) == ("10.0.0.7", 4711)
    assert worker_of(ValueError("(pid=1, ip=10.0.0.7)")) is None, "a text of a user is no place"
    error.__cause__ = None
    assert worker_of(error) is None
