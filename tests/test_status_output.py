"""A report as JSON is all that stdout has, whatever else there is to tell."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Nothing listens there.
INVENTORY = """
celery:
  hosts:
    nowhere: {ansible_host: 127.0.0.1, ansible_port: 9}
redis: {hosts: {nowhere: }}
"""


@pytest.mark.playbook
def test_a_status_as_json_can_be_piped(tmp_path):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(INVENTORY)

    def status(*words, playbook="status"):
        play = pathlib.Path(sys.executable).with_name("ansible-playbook")
        line = [play, "-i", inventory, f"playbooks/{playbook}.yml", *words]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)

    piped = status("-e", "status_format=json")
    assert json.loads(piped.stdout)["hosts"]["nowhere"]["state"] != "ok"
    assert "PLAY RECAP" in piped.stderr
    assert "Connection refused" in " ".join(piped.stderr.split())
    found = json.loads(status("-e", "doctor_format=json", playbook="doctor").stdout)["findings"]
    assert [one["rule"] for one in found] == ["host-silent", "redis-silent"]
    plain = status().stdout
    assert "PLAY RECAP" in plain
    assert "nowhere" in plain
