"""The image and the service of `deploy/` start a server as this one is started."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from typing import Any

import typer

from cmr.cli.app import app
from cmr.serving import health
from cmr.serving.settings import ServerSettings
from tests.docs.blocks import ROOT

DEPLOY = ROOT / "deploy"
IMAGE = ("FROM", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL",
         "ENTRYPOINT")  # fmt: skip


def options(words: list[str]) -> dict[str, Any]:
    """What `cmr serve` takes of a command line; raises for an option that it has not."""
    assert words[:2] == ["cmr", "serve"]
    command: Any = typer.main.get_command(app)
    context = command.make_context("cmr", [], resilient_parsing=True)
    return dict(command.commands["serve"].make_context("serve", words[2:], parent=context).params)


def asks_for_health(words: list[str], port: int) -> bool:
    (url,) = re.findall(r"http://[^'\"\s]+", " ".join(words))
    paths = [route.path for route in health.router.routes if hasattr(route, "path")]
    return url.removeprefix(f"http://127.0.0.1:{port}") in paths


def test_the_image_serves_as_nobody_special() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    assert {word for word, _ in lines} == set(IMAGE)
    last = dict(lines)
    words = json.loads(last["ENTRYPOINT"])
    given = options(words)
    assert given["host"] == "0.0.0.0" and given["keys"] and given["model"]
    # What is told outlives the container, and its user is not root.
    (volume,) = json.loads(last["VOLUME"])
    assert given["folder"].is_relative_to(volume) and int(last["USER"]) > 0
    user = next(rest for _, rest in lines if rest.startswith("useradd"))
    assert f"--uid {last['USER']} " in user and f"--home-dir {volume} " in user
    assert int(last["EXPOSE"]) == given["port"]
    check = json.loads(last["HEALTHCHECK"].partition(" CMD ")[2])
    assert check[0] == "python" and asks_for_health(check, given["port"])
    compile(check[2], "health", "exec")
    # Before what is copied there is nothing but what the project has; images have plain names.
    for word, rest in lines:
        if word == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / name).exists() for name in rest.split()[:-1]), rest
        if word == "FROM":
            assert re.fullmatch(r"python:3\.\d+-slim( AS built)?", rest)
    extras = re.findall(r"\[([\w,]+)\]", next(r for _, r in lines if "pip install" in r))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert all(f"\n{extra} = [" in project for part in extras for extra in part.split(","))


def test_the_service_serves_this_machine_as_a_user_of_its_own() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    text = (DEPLOY / "cmr.service").read_text("utf-8")
    unit.read_string(text)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    service = unit["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[0].startswith("/")
    given = options(["cmr", *words[1:]])
    assert given["host"] == "127.0.0.1" and service["DynamicUser"] == "yes"
    # Its secrets are those that systemd hands it, its folder the one that it may write.
    handed = set(re.findall(r"^LoadCredential=([\w.]+):/etc/cmr/\1$", text, re.MULTILINE))
    assert {f"%d/{name}" for name in handed} == {str(given["keys"]), str(given["key_file"])}
    assert str(given["folder"]).startswith("%S/cmr/") and "cmr" in service["StateDirectory"].split()
    assert "TMPDIR=%S/cmr/tmp" in service["Environment"].split()
    assert asks_for_health(shlex.split(service["ExecStartPost"]), given["port"])
    # What is under way may take as long as a server gives it, and then it saves.
    assert int(service["TimeoutStopSec"]) > 2 * ServerSettings().drain
