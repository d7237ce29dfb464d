"""The client of endpoints against a real server, which may be hostile."""

import contextlib
import copy
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from scorers.errors import IncompleteError, UserError
from tests.training.completions_server import CompletionsServer
from tests.training.tiny_writer import tiny_writer
from training import endpoint as client
from training.endpoint import Endpoint


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_writer(tmp_path_factory.mktemp("model") / "tiny", seed=1)


@pytest.fixture(scope="module")
def one_server(writer: Any) -> Iterator[CompletionsServer]:
    with pytest.MonkeyPatch.context() as patch, CompletionsServer(writer) as found:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("OPENAI_API_KEY", raising=False)
        yield found


@pytest.fixture
def server(one_server: CompletionsServer) -> CompletionsServer:
    one_server.reset()
    return one_server


@pytest.fixture(scope="module")
def one_endpoint(one_server: CompletionsServer) -> Endpoint:
    return open_endpoint(one_server)


@pytest.fixture
def endpoint(server: CompletionsServer, one_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """A client that has not probed its server yet."""
    monkeypatch.setattr(one_endpoint, "_works", False)
    return one_endpoint


def open_endpoint(server: CompletionsServer, model: str | None = None) -> Endpoint:
    return Endpoint(server.address, model, "--reference")


def draw(endpoint: Endpoint, prompts: tuple[str, ...] = ("a b",), n: int = 1) -> Any:
    return endpoint.complete(prompts, max_tokens=4, temperature=1.0, top_p=1.0, seed=5, n=n, logprobs=True)


def test_log_probabilities_are_those_of_the_model(endpoint: Endpoint, writer: Any) -> None:
    endpoint.probe("", logprobs=True)
    assert endpoint.model == "tiny"
    for found in draw(endpoint, ("a b", "c")):
        ids = [1 + "abcde".index(each) for each in found.text.split()]
        ids += [writer.eos_id] * (found.finish_reason == "stop")
        prompt = [0, 1, 2] if found.index == 0 else [0, 3]
        log_p = torch.log_softmax(writer.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].double(), -1)
        expected = [float(log_p[len(prompt) - 1 + place, each]) for place, each in enumerate(ids)]
        assert found.logprobs.token_logprobs == pytest.approx(expected)
    assert [each.index for each in draw(endpoint, n=3)] == [0, 1, 2]


def test_the_whole_distribution_is_requested_in_the_words_that_a_server_knows(
    server: CompletionsServer, endpoint: Endpoint
) -> None:
    endpoint.probe("", logprobs=True)
    draw(endpoint)
    assert server.requests[-1] | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0} == server.requests[-1]
    server.only_openai = True
    endpoint.probe("", logprobs=True)
    draw(endpoint)
    assert set(server.requests[-1]) == {
        "model",
        "prompt",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "n",
        "logprobs",
    }


def test_the_key_comes_from_the_environment(server: CompletionsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(open_endpoint(server))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    draw(open_endpoint(server))
    assert server.keys == ["Bearer none", "Bearer sk-secret"]
    server.status = lambda: (401, {}, b'{"error": {"message": "Incorrect API key provided: sk-secret"}}')
    with pytest.raises(UserError, match=r"refuses access \(status 401\)\. Set OPENAI_API_KEY") as caught:
        draw(open_endpoint(server))
    assert "sk-secret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX-Other: 1")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds white space") as caught:
        open_endpoint(server)
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://user:sk-secret@localhost:8000/v1",
        "http://sk-secret@localhost/v1",
        "http://localhost/v1?api-key=sk-secret",
        "http://localhost/v1#sk-secret",
        "http://local host/sk-secret",
        "http://[::1/sk-secret",
        "http://localhost:port/sk-secret",
        "http://localhost/\x1b[2Jsk-secret",
    ],
)
def test_addresses_with_credentials_or_without_sense_are_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"give the address without user|not a valid address") as caught:
        client.checked_address(address, "--reference")
    assert "secret" not in str(caught.value)


def test_a_path_is_added_to_an_address_without_one() -> None:
    for given in (
        "HTTP://localhost:1",
        "http://localhost:1/",
        "http://localhost:1/v1/",
        "http://localhost:1/v1/completions",
    ):
        assert Endpoint(given, "m", "--reference").address == "http://localhost:1/v1"


def test_without_the_client_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"which is not installed: pip install 'phf\[endpoint\]'"):
        Endpoint("http://localhost:1/v1", "m", "--attacker")


def test_an_endpoint_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_RETRIES", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=r"--reference http://127.0.0.1:[0-9]+/v1 cannot be reached") as caught:
        Endpoint(address, None, "--reference")
    assert caught.value.exit_code == 2


def test_models_are_named_where_there_are_several(server: CompletionsServer) -> None:
    server.names = ["one\x1b[2J", "two"]
    with pytest.raises(UserError, match=r"serves 2 models \(one\\x1b\[2J, two\): name one with --reference-model"):
        open_endpoint(server)
    assert draw(open_endpoint(server, "two"))
    with pytest.raises(UserError, match=r"no such model, or no completions there \(status 404\)"):
        draw(open_endpoint(server, "three"))
    server.names = []
    with pytest.raises(UserError, match="serves 0 models: name one"):
        open_endpoint(server)
    with pytest.raises(UserError, match="printable characters"):
        open_endpoint(server, "\x1b[2J")


def test_a_busy_server_is_asked_again(server: CompletionsServer, endpoint: Endpoint) -> None:
    answers: list[Any] = [(503, {"Retry-After": "0.01"}, b"secret"), (429, {"Retry-After": "0.01"}, b"secret"), None]
    server.status = lambda: answers.pop(0)
    assert draw(endpoint)
    assert len(server.requests) == 3
    server.status = lambda: (503, {"Retry-After": "0.01"}, b"secret")
    with pytest.raises(UserError, match="answers with status 503") as caught:
        draw(endpoint)
    assert len(server.requests) == 3 + 4
    assert "secret" not in str(caught.value)


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """Set a field of an answer; `...` removes it."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        answer = copy.deepcopy(answer)
        part: Any = answer
        for each in path[:-1]:
            part = part[each]
        if value is ...:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        return answer

    return change


LOGPROBS = ("choices", 0, "logprobs")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (changed((*LOGPROBS, "token_logprobs", 0), float("nan")), "not JSON, or holds NaN"),
        (changed((*LOGPROBS, "token_logprobs", 0), float("inf")), "not JSON, or holds NaN"),
        (changed((*LOGPROBS, "token_logprobs", 0), 1e308), "token_logprobs.0 is missing or not valid"),
        (changed((*LOGPROBS, "token_logprobs", 0), 0.5), "token_logprobs.0 is missing or not valid"),
        (changed((*LOGPROBS, "token_logprobs", 0), None), "token_logprobs.0 is missing or not valid"),
        (changed((*LOGPROBS, "token_logprobs", 0), "-1"), "token_logprobs.0 is missing or not valid"),
        (changed((*LOGPROBS, "token_logprobs"), [-1.0] * 3), "other numbers of tokens"),
        (changed(LOGPROBS, {"tokens": ["a"] * 50, "token_logprobs": [-1.0] * 50}), "other numbers of tokens"),
        (changed((*LOGPROBS, "tokens"), ...), "logprobs.tokens is missing"),
        (changed(LOGPROBS, None), "sends no log-probabilities of tokens"),
        (changed(LOGPROBS, []), "logprobs is missing or not valid"),
        (changed(("choices", 0, "text"), ...), "choices.0.text is missing"),
        (changed(("choices", 0, "index"), 1), "sent 1 completions of other numbers than the 1 requested"),
        (changed(("choices", 0, "index"), -1), "choices.0.index is missing or not valid"),
        (changed(("choices",), []), "sent 0 completions"),
        (changed(("choices",), {}), "choices is missing or not valid"),
        (changed(("choices",), ...), "choices is missing"),
        (lambda answer: {"choices": answer["choices"] * 9}, "sent 9 completions"),
        (lambda answer: [], "is missing or not valid"),
        (lambda answer: b"<html>secret</html>", "not JSON"),
        (lambda answer: b"", "not JSON"),
        (lambda answer: b"\xff\xfe", "not JSON"),
        (lambda answer: b"[" * 100_000, "not JSON"),
        (lambda answer: {**answer, "more": "x" * (3 << 20)}, "sent an answer of more than 1,064,960 bytes"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_one_is_refused(
    server: CompletionsServer, endpoint: Endpoint, change: Any, problem: str
) -> None:
    server.change = change
    with pytest.raises(UserError, match=problem) as caught:
        draw(endpoint)
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)
    server.change = lambda answer: answer
    endpoint.probe("")
    server.change = change
    with pytest.raises(IncompleteError, match="What is finished is kept: run the same command again"):
        endpoint.complete(["a b"], max_tokens=4, temperature=1.0, top_p=1.0, seed=5, logprobs=True)


@pytest.mark.parametrize(
    ("status", "headers", "body", "problem"),
    [
        (200, {"Content-Encoding": "gzip"}, b"", "sent a compressed answer"),
        (400, {}, b"x" * (3 << 20), "sent an answer of more than"),
        (400, {}, b"{" * 1000, r"refuses the request \(status 400\)\. Its log says why.*NULL"),
        (307, {"Location": "http://127.0.0.1:1/steal"}, b"", r"redirects .*\(status 307\), which .*\. Give the final"),
        (200, {"Content-Length": "1000", "Connection": "close"}, b"{}", "closed the connection before its answer"),
    ],
)
def test_other_ways_to_misbehave(
    server: CompletionsServer, endpoint: Endpoint, status: int, headers: Any, body: bytes, problem: str
) -> None:
    server.status = lambda: (status, headers, body)
    with pytest.raises(UserError, match=problem):
        endpoint.probe("", hint="NULL")


def test_a_slow_answer_is_given_up(
    server: CompletionsServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_ANSWER_S", -1.0)
    with pytest.raises(UserError, match="seconds for an answer"):
        draw(endpoint)


def test_headers_that_never_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_ANSWER_S", 1.0), ("_CONNECT_S", 0.5), ("_RETRIES", 0)):
        monkeypatch.setattr(client, name, value)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while True:
                connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with pytest.raises(UserError, match="did not answer a request within 2 seconds"):
            Endpoint(address, None, "--attacker")


def test_half_a_surrogate_is_no_text(server: CompletionsServer, endpoint: Endpoint) -> None:
    server.change = changed(("choices", 0, "text"), "a\ud800b")
    assert draw(endpoint)[0].text == "a\ufffdb"
