"""celery_kept: what a host has at the paths that a version is made of."""

from ansible.module_utils import celery_kept


def test_files_are_compared_by_their_content_and_links_by_their_target(tmp_path):
    (tmp_path / "a.crt").write_bytes(b"abc")
    (tmp_path / "directory.crt").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    patterns = [f"{tmp_path}/*.crt", f"{tmp_path}/link", f"{tmp_path}/absent"]
    assert celery_kept.digests(patterns) == {
        f"{tmp_path}/a.crt": "a9993e364706816aba3e25717850c26c9cd0d89d",
        f"{tmp_path}/link": "-> nowhere",
    }
