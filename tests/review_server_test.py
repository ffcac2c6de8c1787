"""The local web app's routes: what is answered to whom, and what never is."""

import json

import pytest
from gcs_stand_in import BUCKET
from review_rows_test import rows_in
from reviewed import HOSTILE, write_run
from starlette.testclient import TestClient

from cai_jax import storage
from cai_jax.review.choices import Choices
from cai_jax.review.rows import FOLDERS, rows, version
from cai_jax.review.server import Server, app


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


@pytest.fixture
def client(run):
    return client_of(run)


def client_of(run, token="", **how):
    choices = Choices(run / "ratings.sqlite")
    server = Server([run], choices, **({"check_every": 4, "overlap": 1.0} | how))
    return TestClient(app(server, token), base_url="http://127.0.0.1:8642",
                      raise_server_exceptions=False)  # fmt: skip


def choose(client, task, choice="1", rater="ann", **more):
    body = {"rater": rater, "task": task, "choice": choice}
    return client.post("/api/rate/choice", json=body, **more)


def test_pages_and_files_are_served_under_a_strict_policy(client):
    for path in ("/", "/rate", "/results", "/static/report.js", "/static/style.css",
                 "/api/overview", "/nothing", "/static/../server.py"):  # fmt: skip
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    assert "<script>" not in client.get("/").text and "style=" not in client.get("/").text


def test_rows_come_in_pages_and_change_with_the_records(client, run):
    for view in FOLDERS:
        answer = client.get(f"/api/rows/{view}?after=0").json()
        assert answer["rows"] == json.loads(json.dumps(rows([run], view)[0]))
        assert answer["more"] is False
        assert len(client.get(f"/api/rows/{view}?after=10").json()["rows"]) == 2
    before = client.get("/api/versions").json()
    (run / "revise" / "revisions" / "00001-of-00002.jsonl").unlink()
    after = client.get("/api/versions").json()
    assert {view for view in after if after[view] != before[view]} == {"chains", "overview"}
    assert len(client.get("/api/rows/chains").json()["rows"]) == 6
    assert client.get("/api/overview").json()["rows"]["chains"] == [6, 6]


@pytest.mark.parametrize(
    "path",
    [
        "/static/server.py", "/static/..%2f..%2fcli.py", "/static/%2e%2e/page.py", "/static/",
        "/static/../templates/page.html", "/static/%00", "/api/rows/passwords",
        "/api/rows/..%2f..", "/api/rows/chains?after=-1", "/api/rows/chains?after=x",
        "/export/ratings.sqlite", "/export/..%2fconfig.json", "/export/%2fetc%2fpasswd",
        "/config.json", "/ratings.sqlite", "//etc/passwd", "/etc/passwd",
    ],
)  # fmt: skip
def test_no_path_reaches_the_file_system(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text and "import" not in answer.text


def test_a_file_to_download_has_a_fixed_name(client):
    for name in ("snapshot_comparisons.jsonl", "comparisons.jsonl"):
        answer = client.get(f"/export/{name}")
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'


def test_other_hosts_names_are_refused(client):
    """As where another site's page has its name point here, to read what the browser sees."""
    for host in ("evil.example", "evil.example:8642", "127.0.0.1.evil.example", "", "[::1"):
        assert client.get("/", headers={"host": host}).status_code == 400
    for host in ("127.0.0.1:8642", "localhost:1", "localhost", "[::1]:8642"):
        assert client.get("/", headers={"host": host}).status_code == 200


def test_only_its_own_pages_may_write(client):
    task = client.get("/api/rate/task?rater=ann").json()["task"]["id"]
    said = json.dumps({"rater": "ann", "task": task, "choice": "1"})
    for headers in ({"origin": "http://evil.example", "content-type": "application/json"},
                    {"origin": "null", "content-type": "application/json"},
                    {"content-type": "text/plain"},
                    {"content-type": "application/x-www-form-urlencoded"}):  # fmt: skip
        answer = client.post("/api/rate/choice", content=said, headers=headers)
        assert answer.status_code == 403
    long = json.dumps({"rater": "ann", "task": task, "choice": "1", "more": "x" * 20_000})
    json_type = {"content-type": "application/json"}
    assert client.post("/api/rate/choice", content=long, headers=json_type).status_code == 413
    assert client.get("/api/rate/choice").status_code == 405
    assert client.get("/api/rate/task?rater=ann").json()["done"] == 0
    assert choose(client, task, headers={"origin": "http://127.0.0.1:8642"}).status_code == 200


def test_a_token_is_asked_of_everybody(run):
    client = client_of(run, token="secret-of-sixteen-letters")
    for path in ("/", "/rate", "/api/overview", "/static/report.js", "/?token=wrong",
                 "/?token=", "/export/comparisons.jsonl"):  # fmt: skip
        assert client.get(path).status_code == 403
    first = client.get("/rate?token=secret-of-sixteen-letters", follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, "/rate")  # not in the address
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert client.get("/rate").status_code == 200  # the cookie
    task = client.get("/api/rate/task?rater=ann").json()["task"]["id"]
    assert choose(client, task).status_code == 200
    stranger = client_of(run, token="secret-of-sixteen-letters")
    assert choose(stranger, task).status_code == 403


def test_rating_undoing_and_going_on_after_a_restart(run):
    client = client_of(run)
    first = client.get("/api/rate/task?rater=ann").json()
    assert (first["done"], first["total"], first["undo"]) == (0, 36, False)
    second = choose(client, first["task"]["id"], "2").json()
    assert second["done"] == 1 and second["task"]["id"] != first["task"]["id"]
    third = choose(client, second["task"]["id"], "skip").json()
    back = client.post("/api/rate/undo", json={"rater": "ann"}).json()
    assert back["task"]["id"] == second["task"]["id"] and back["done"] == 1
    choose(client, second["task"]["id"], "3")
    again = client_of(run)  # another process would find the same file
    assert again.get("/api/rate/task?rater=ann").json()["task"] == third["task"]
    assert again.get("/api/rate/results").json()["choices"] == 2
    assert again.get("/api/rate/task?rater=bob").json()["done"] == 0


def test_the_answer_that_was_chosen_is_the_one_that_wins(run):
    """From what a rater saw to the exported record, on both sides and for every rater."""
    client, chosen, sides = client_of(run, check_every=0), {}, set()
    for rater in ("ann", "bob"):
        state = client.get(f"/api/rate/task?rater={rater}").json()
        for n in range(12):
            task, choice = state["task"], "1234"[n % 4]
            better = task["left"] if choice in "12" else task["right"]
            chosen[rater, frozenset((task["left"], task["right"]))] = better
            state = choose(client, task["id"], choice, rater).json()
    for name in ("snapshot_comparisons.jsonl", "comparisons.jsonl"):
        records = [json.loads(line) for line in client.get(f"/export/{name}").text.splitlines()]
        assert len(records) == 24
        for r in records:
            pair = frozenset((r["response_a"], r["response_b"]))
            won = r["response_a"] if r["prob_a"] == 1 else r["response_b"]
            assert chosen[r.get("judge") or r["labeler"], pair] == won
            sides.add(r["prob_a"])
    assert sides == {0.0, 1.0}


@pytest.mark.parametrize(
    "body",
    [
        {}, [], 1, {"rater": "ann"}, {"rater": "ann", "task": "x", "choice": "1"},
        {"rater": "", "choice": "1"}, {"rater": "x" * 61, "choice": "1"},
        {"rater": "a\nb", "choice": "1"}, {"rater": ["ann"], "choice": "1"},
        {"rater": "ann", "choice": "5"}, {"rater": "ann", "choice": "undo"},
        {"rater": "ann", "task": ["x"], "choice": "1"}, {"rater": "ann", "choice": ["1"]},
    ],
)  # fmt: skip
def test_a_choice_that_makes_no_sense_is_refused(client, body):
    task = client.get("/api/rate/task?rater=ann").json()["task"]["id"]
    if isinstance(body, dict):
        body = {"task": task, **body} if "choice" in body else body
    answer = client.post("/api/rate/choice", json=body)
    assert answer.status_code == 400 and "error" in answer.json()
    assert client.get("/api/rate/results").json()["raters"] == []


def test_hostile_words_are_data_everywhere(tmp_path):
    words = iter(range(10**6))
    text = lambda name: f"{HOSTILE[next(words) % len(HOSTILE)]} {name}"  # noqa: E731
    run = write_run(tmp_path / "run", text=text)
    client = client_of(run)
    for path in ("/", "/rate", "/results"):
        assert not any(hostile in client.get(path).text for hostile in HOSTILE)
    for path in ("/api/overview", "/api/rows/chains", "/api/rate/task?rater=%3Cscript%3E"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.text)
    task = client.get("/api/rate/task?rater=ann").json()["task"]["id"]
    for n, rater in enumerate(HOSTILE):
        said = choose(client, task, rater=rater).status_code
        assert said == (200 if rater.isprintable() and len(rater) <= 60 else 400), n


def test_while_the_evaluation_goes_on_the_page_says_so(run):
    (run / "evaluation" / "done.json").unlink()
    client = client_of(run)
    said = client.get("/api/rate/task?rater=ann").json()
    assert said["task"] is None and "has no finished 'evaluation'" in said["why"]
    (run / "evaluation" / "done.json").write_text("{}")
    assert client.get("/api/rate/task?rater=ann").json()["task"]


def test_a_damaged_record_is_a_sentence(run):
    client = client_of(run)
    file = run / "revise" / "revisions" / "00000-of-00002.jsonl"
    file.write_text("{\n")
    answer = client.get("/api/rows/chains")
    assert answer.status_code == 500 and "not valid JSON" in answer.json()["error"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve", "give --workdir=DIR"),
        ("report", "give --workdir=DIR"),
        ("report --workdir=nowhere", "nowhere is no run"),
        ("serve --workdir=nowhere --port=0", "nowhere is no run"),
        ("report --workdir=RUN OTHER/run", "two workdirs have one name"),
        ("report --workdir=RUN --megabytes=0", "--megabytes is 0.0"),
        ("report --workdir=RUN --to=/proc/nothing/x.html", "Cannot write /proc/nothing/x.html"),
        ("serve --workdir=RUN --port=99999", "cannot be listened at"),
        ("serve --workdir=RUN --host=203.0.113.7", "cannot be listened at"),
        ("serve --workdir=RUN --host=0.0.0.0 --token=short", "at least 16 characters"),
        ("serve --workdir=RUN --check_every=-1", "--check_every is -1"),
        ("serve --workdir=RUN --overlap=2", "--overlap is 2.0"),
        ("serve --workdir=RUN --port=0 --ratings=RUN", "cannot be used for ratings"),
        ("serve --workdir=gs://b/run --port=0", "holds no ratings"),
    ],
)
def test_bad_input_is_one_sentence(typed, run, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    command = command.replace("RUN", str(run)).replace("OTHER", str(tmp_path / "other"))
    code, out, err = typed(*command.split(" "))
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1 and err.startswith("cai-jax: ")


def test_a_run_in_a_bucket_is_reported(store, typed, run, tmp_path):
    there = storage.path(f"gs://{BUCKET}/run")
    for file in run.rglob("*"):
        if file.is_file():
            storage.put(there / file.relative_to(run).as_posix(), file.read_bytes())
    code, _, err = typed("report", f"--workdir={there}", f"--to={tmp_path / 'report.html'}")
    assert code == 0, err
    assert typed("report", f"--workdir={run}")[0] == 0
    made = [(tmp_path / "report.html").read_text(), (run / "report.html").read_text()]
    for view in FOLDERS:
        assert rows_in(made[0], view) == rows_in(made[1], view) != []
    assert version([there], "chains") == version([run], "chains")
    for stage in ("chains", "answers"):
        assert len(rows([there], stage)[0]) == 12


def test_the_report_is_written_where_it_is_asked_for(typed, run, tmp_path):
    code, out, _ = typed("report", f"--workdir={run}")
    assert code == 0 and out.strip() == str(run / "report.html")
    other = write_run(tmp_path / "more" / "other")
    code, out, _ = typed("report", f"--workdir={run}", other, f"--to={tmp_path / 'both.html'}")
    assert code == 0 and (tmp_path / "both.html").stat().st_size > 50_000
