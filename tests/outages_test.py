"""A bucket that is out of reach: which failures a restart may mend, what is said, exit codes."""

import types

import aiohttp
import jax
import pytest
import requests
import tiny_run
from gcs_stand_in import BUCKET
from google.api_core import exceptions as google_errors
from google.auth.exceptions import DefaultCredentialsError

from cai_jax import outages, storage
from cai_jax.saved_params import load_params
from cai_jax.shards import Shards
from cai_jax.storage import StorageError, Unreachable
from cai_jax.training.checkpoint import Checkpoints


def retry():
    """gcsfs's module of that name, imported after cai_jax.storage has said how."""
    storage._set_up()
    import gcsfs.retry

    return gcsfs.retry


def http(code):
    return retry().HttpError({"code": code, "message": "told"})


def caused(by):
    error = ValueError("outer")
    error.__cause__ = by
    return error


def test_kinds():
    expected = {
        "passing": [
            http(503), http("429"), caused(caused(http(500))),
            google_errors.ServiceUnavailable("x"), google_errors.RetryError("x", cause=None),
            requests.exceptions.ConnectionError("x"), aiohttp.ServerDisconnectedError(),
            ConnectionResetError("x"), TimeoutError("x"), ValueError("UNAVAILABLE: x"),
        ],
        "forbidden": [
            http(401), google_errors.Forbidden("x"), DefaultCredentialsError("x"),
            OSError("Forbidden: https://x"), ValueError("PERMISSION_DENIED: x"),
        ],
        "no bucket": [google_errors.NotFound("x")],
        None: [
            http(400), google_errors.PreconditionFailed("x"), ValueError("NOT_FOUND: x"),
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
            FileNotFoundError("x"), caused(KeyError("x")),
        ],
    }  # fmt: skip
    for kind, errors in expected.items():
        assert {repr(e): outages.kind(e) for e in errors} == {repr(e): kind for e in errors}


def test_exit_codes():
    found = [
        outages.exit_code(e) for e in (Unreachable("x"), StorageError("x"), OSError(), KeyError())
    ]
    assert found == [75, 2, 2, 1]


def test_an_error_that_is_not_of_a_bucket_stays_what_it_is(monkeypatch):
    monkeypatch.setattr(storage, "_named", [])
    error = ConnectionResetError("x")
    assert storage.explained(error) is error
    monkeypatch.setattr(storage, "_named", ["gs://a", "gs://b"])
    assert str(storage.explained(error)).startswith("gs://a or gs://b cannot be reached (x); ")
    for error in (KeyError("x"), StorageError("x"), KeyboardInterrupt()):
        assert storage.explained(error) is error


@pytest.fixture
def at_once(monkeypatch):
    """The client asks again without waiting."""

    async def sleep(seconds):
        pass

    monkeypatch.setattr(retry(), "asyncio", types.SimpleNamespace(sleep=sleep))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return tiny_run.write(tmp_path_factory.mktemp("experiment"))


@pytest.mark.parametrize(
    ("method", "part", "status"),
    [
        ("POST", "", 503),
        ("POST", "", 0),
        ("POST", "", 429),
        ("GET", "revise/inputs.json", 500),  # whether a file is there
        ("GET", "revise/inputs.json", 0),
        ("GET", "run/.probe", 502),  # a list of files
        ("DELETE", "run/.probe", 504),
    ],
)
def test_a_store_that_does_not_answer_is_tried_again_later(
    store, at_once, experiment, tiny_cache, capsys, method, part, status
):
    asked = []

    def fault(*request):
        if request[0] == method and part in request[1]:
            asked.append(request)
            return status
        return None

    store.fault = fault
    code = tiny_run.run(experiment.command("revise", f"gs://{BUCKET}/run"), tiny_cache)
    said = capsys.readouterr().err
    assert code == 75, said
    assert said.startswith(f"cai-jax: gs://{BUCKET}") and said.count("\n") == 1
    assert "cannot be reached" in said and "run the same command again" in said
    assert len(asked) >= 6, "the client gave up too early"


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda method, path: True,
        lambda method, path: method == "POST",
        lambda method, path: path.split("?")[0] == f"/storage/v1/b/{BUCKET}",
    ],
    ids=["all", "writing", "asking for the bucket itself"],
)
def test_who_may_not_enter_is_told_the_roles(store, experiment, tiny_cache, capsys, forbidden):
    store.fault = lambda *request: 403 if forbidden(*request) else None
    argv = experiment.command("revise", f"gs://{BUCKET}/run")
    assert tiny_run.run(argv, tiny_cache) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cai-jax: gs://{BUCKET}/run/.probe is forbidden to the credentials")
    assert "Storage Object User" in said and said.count("\n") == 1


def test_a_bucket_that_is_not_there_is_named(store, experiment, tiny_cache, capsys):
    assert tiny_run.run(experiment.command("revise", "gs://absent/run"), tiny_cache) == 2
    said = capsys.readouterr().err
    assert said.startswith("cai-jax: There is no bucket gs://absent that ")
    assert "`gcloud storage buckets create gs://absent`" in said and said.count("\n") == 1


@pytest.mark.parametrize("status", [0, 403])
def test_a_folder_out_of_reach_is_not_an_empty_one(store, at_once, status):
    folder = storage.path(f"gs://{BUCKET}/run/records")
    shards = Shards(folder, 1)
    shards.write(0, [])
    store.fault = lambda method, path: status
    for act in (shards.done, lambda: load_params(folder)):
        with pytest.raises(Exception) as caught:
            act()
        expected = "is forbidden" if status else "cannot be reached"
        assert expected in str(storage.explained(caught.value))


def test_what_is_forbidden_to_checkpoints_is_told(store):
    """They have clients of their own."""
    store.fault = lambda method, path: 403 if "/b/closed" in path else None
    with pytest.raises(Exception) as caught:
        Checkpoints("gs://closed/run/checkpoints", keep=1).save(1, {"x": 1.0}, {})
    explained = storage.explained(caught.value)
    assert "gs://closed" in str(explained) and "is forbidden to" in str(explained)
    assert outages.exit_code(explained) == 2
