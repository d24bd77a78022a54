"""Everything under deploy/ parses, and says what was promised."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import Stage, read
from tests.gateway.serving import ROOT
from visiongate.gateway.settings import load

DEPLOY = ROOT / "deploy"
EDITIONS = {"cpu": 8080, "pro": 8501}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.fixture(params=list(EDITIONS))
def edition(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def final(edition: str) -> Stage:
    return read(DEPLOY / f"Dockerfile.{edition}")[-1]


def test_base_images_are_pinned_and_stages_are_two(edition: str) -> None:
    stages = read(DEPLOY / f"Dockerfile.{edition}")
    assert [stage.name for stage in stages] == ["build", ""]
    for stage in stages:
        tag = stage.base.partition(":")[2]
        assert tag
        assert "latest" not in tag


def test_no_dockerfile_fetches_urls_or_keeps_lists_or_secrets(edition: str) -> None:
    for stage in read(DEPLOY / f"Dockerfile.{edition}"):
        assert not stage.all("ADD")
        for run in stage.all("RUN"):
            assert not re.search(r"\b(curl|wget|sudo|ssh)\b", run.text)
            if "apt-get install" in run.text:
                assert "--no-install-recommends" in run.text
                assert "rm -rf /var/lib/apt/lists" in run.text
        assert not re.search(r"(KEY|TOKEN|PASSWORD)", " ".join(stage.environment))


def test_the_service_runs_as_a_user_of_its_own(final: Stage) -> None:
    assert final.last("ENTRYPOINT").words == ["/app/entrypoint.sh"]
    script = (DEPLOY / "entrypoint.sh").read_text()
    assert "exec setpriv --reuid=" in script
    assert "useradd --uid 10001" in " ".join(item.text for item in final.all("RUN"))


def test_paths_port_language_and_health_are_as_promised(edition: str, final: Stage) -> None:
    assert set(final.last("VOLUME").words) >= {"/app/logs", "/app/.cache"}
    assert final.last("EXPOSE").text == str(EDITIONS[edition])
    assert final.last("STOPSIGNAL").text == "SIGTERM"
    assert "UTF-8" in final.environment["LANG"]
    assert final.environment["PYTHONUTF8"] == "1"
    assert final.environment["HF_HOME"].startswith("/app/.cache")
    assert "healthcheck.py" in final.last("HEALTHCHECK").text
    assert final.last("CMD").words == ["python3", "app.py"]


def test_the_image_s_environment_is_valid_settings(edition: str, final: Stage) -> None:
    settings = load(environ=final.environment)
    assert settings.preset == edition
    assert settings.port == EDITIONS[edition]
    assert settings.host == "0.0.0.0"
    assert settings.insecure
    assert str(settings.log_dir) == "/app/logs"


def test_what_dockerfiles_copy_is_there(edition: str) -> None:
    ignored = (DEPLOY / f"Dockerfile.{edition}.dockerignore").read_text().splitlines()
    for stage in read(DEPLOY / f"Dockerfile.{edition}"):
        for copy in stage.all("COPY"):
            if copy.text.startswith("--from"):
                continue
            for name in copy.words[:-1]:
                assert (ROOT / name).exists()
                assert name == "." or f"!{name}" in ignored


def test_the_promised_run_line_stands_in_each_dockerfile() -> None:
    cpu = (DEPLOY / "Dockerfile.cpu").read_text()
    assert "docker run -d --name qwen-vl-prod --restart=always -p 8080:8080" in cpu
    assert "-v /data/qwen-vl/logs:/app/logs -v /data/qwen-vl/cache:/app/.cache -m 10g" in cpu
    pro = (DEPLOY / "Dockerfile.pro").read_text()
    line = "docker run -d --gpus all --shm-size=2g -p 8501:8501 -v $(pwd)/logs:/app/logs"
    assert line in pro


def test_compose_files_parse_and_name_the_promised_things(edition: str) -> None:
    service = documents(DEPLOY / f"compose.{edition}.yaml")[0]["services"]["visiongate"]
    assert service["ports"] == [f"{EDITIONS[edition]}:{EDITIONS[edition]}"]
    assert {v.split(":")[1] for v in service["volumes"]} >= {"/app/logs", "/app/.cache"}
    assert service["restart"] == "always"
    assert service["stop_grace_period"] == "60s"
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    names = {key for key in service["environment"] if key.startswith("VISIONGATE_")}
    load(environ=dict.fromkeys(names, ""))


def test_the_nginx_overlay_mounts_files_that_are_there() -> None:
    def overriding(loader: yaml.SafeLoader, node: yaml.Node) -> list[object]:
        assert isinstance(node, yaml.SequenceNode)
        found: list[object] = loader.construct_sequence(node)
        return found

    yaml.SafeLoader.add_constructor("!override", overriding)
    services = documents(DEPLOY / "compose.nginx.yaml")[0]["services"]
    assert services["nginx"]["depends_on"]["visiongate"]["condition"] == "service_healthy"
    for volume in services["nginx"]["volumes"]:
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() or source in {"./tls", "./htpasswd"}


def test_kubernetes_manifests_probe_limit_and_protect(edition: str) -> None:
    found = {item["kind"]: item for item in documents(DEPLOY / f"kubernetes/{edition}.yaml")}
    assert set(found) == {
        "Deployment",
        "PersistentVolumeClaim",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
    }
    pod = found["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    paths = {
        name: container[name]["httpGet"]["path"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert paths == {
        "startupProbe": "/health",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    assert container["ports"][0]["containerPort"] == EDITIONS[edition]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (edition == "pro")
    names = {mount["name"] for mount in container["volumeMounts"]}
    assert names == {volume["name"] for volume in pod["volumes"]}
    metric = found["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert metric == "visiongate_requests_waiting"
    names = {e["name"] for e in container["env"]}
    load(environ=dict.fromkeys(names, ""))


def metric_names() -> set[str]:
    """Names as our own source writes them; counters and histograms get their suffixes."""
    source = (ROOT / "src/visiongate/gateway/metrics.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"(visiongate_[a-z_]+)"', source))
    return names | {f"{name}{end}" for name in names for end in ("_total", "_bucket", "_count")}


@pytest.mark.parametrize("name", ["prometheus/alerts.yml", "grafana/visiongate.json"])
def test_alerts_and_dashboard_ask_for_metrics_that_exist(name: str) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    parsed = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
    assert parsed
    expressions = re.findall(r'(?:expr: |"expr": ")(.+)', text)
    assert len(expressions) >= 6
    used = {word for line in expressions for word in re.findall(r"visiongate_[a-z_]+", line)}
    assert used <= metric_names()


def test_every_alert_says_what_to_do() -> None:
    groups = documents(DEPLOY / "prometheus/alerts.yml")[0]["groups"]
    for rule in groups[0]["rules"]:
        assert rule["annotations"]["action"]
        assert rule["labels"]["severity"] in {"page", "warning"}
    scrape = documents(DEPLOY / "prometheus/prometheus.yml")[0]
    assert scrape["rule_files"] == ["alerts.yml"]


def test_the_unit_is_read_by_systemd(tmp_path: Path) -> None:
    unit = DEPLOY / "systemd/visiongate.service"
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]  # keeps capitals
    parser.read(unit, encoding="utf-8")
    assert parser["Service"]["ExecStart"].endswith("visiongate serve --preset cpu")
    assert parser["Service"]["Restart"] == "always"
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    text = unit.read_text().replace("/opt/visiongate/bin/visiongate", "/bin/true")
    text = re.sub(r"^(User|Group)=.*\n", "", text, flags=re.M)
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", str(tmp_path / unit.name)], capture_output=True, text=True, check=False
    )
    assert unit.name not in done.stderr, done.stderr


def test_shell_scripts_parse_under_a_plain_shell() -> None:
    for script in DEPLOY.rglob("*.sh"):
        subprocess.run(["sh", "-n", str(script)], check=True)
