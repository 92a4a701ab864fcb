"""Certificates, made by what the role redis makes its own with."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from runtime_lab import HERE

sys.path.append(str(HERE.parents[1] / "roles/redis/module_utils"))

import celery_redis_certificates as certificates


class Authority:
    """An authority with files of what it has issued."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.now = folder, datetime.now(UTC)
        self.kept = certificates.new_authority(self.now)
        self.ca = self.write("ca", certificates.public(self.kept.value))
        self.worker = self.write(
            "worker", certificates.client_certificate("worker", self.kept).value
        )

    def server(self, address: str) -> Path:
        made = certificates.server_certificate([address], self.kept, self.now)
        return self.write(f"server-{address}", made.value)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def environ(self) -> dict[str, str]:
        return {
            "CELERY_METAL_TLS_CA_FILE": str(self.ca),
            "CELERY_METAL_TLS_CERTIFICATE_FILE": str(self.worker),
        }
