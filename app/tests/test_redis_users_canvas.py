"""Every primitive of a canvas and every feature of results, as each user who may send tasks."""

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import chain, chord, group, signature
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import GroupResult, ResultSet, allow_join_result
from runtime_lab import PASSWORD, PATIENCE, Producer, wait_until
from test_runtime_transport import lines

pytestmark = pytest.mark.versions

DOCUMENT = Path(__file__).parents[2] / "docs/external.md"
CONF = {
    "result_extended": True,
    "task_track_started": True,
    "task_store_eager_result": True,
    "result_expires": 3600,
}


def add(a, b):
    return a + b


def total(numbers):
    return sum(numbers)


class Uses:
    """What a program does with tasks and their results; each method is one use."""

    def __init__(self, app, queue, folder):
        self.app, self.queue, self.folder = app, queue, folder
        self.task, self.sum = (
            app.task(one, name=name, queue=queue)
            for one, name in ((add, "metal_sample.tasks.add"), (total, "lab_app.total"))
        )

    def add(self, *numbers, **options):
        return self.task.signature(numbers, queue=self.queue, **options)

    def of(self, name, *arguments, **options):
        return signature(f"lab_app.{name}", arguments, app=self.app, queue=self.queue, **options)

    def total(self, **options):
        return self.of("total", **options)

    def value(self, canvas):
        return canvas.apply_async().get(timeout=PATIENCE)

    def mark(self):
        return str(Path(self.folder, uuid.uuid4().hex))

    def use_chain(self):
        assert self.value(chain(self.add(1, 2), self.add(3), self.add(4))) == 10

    def use_group(self):
        assert self.value(group(self.add(1, 2), self.add(3, 4))) == [3, 7]

    def use_chord(self):
        assert self.value(chord([self.add(1, 2), self.add(3, 4)], self.total())) == 10

    def use_chord_of_none(self):
        assert self.value(chord([], self.total())) == 0

    def use_nested(self):
        two = group(self.add(1, 2), self.add(3, 4))
        assert self.value(chain(self.add(1, 1), group(self.add(1), self.add(2)))) == [3, 4]
        assert self.value(chain(two, self.total())) == 10
        assert self.value(group(two, self.add(5, 5))) == [3, 7, 10]
        assert self.value(chain(two, self.total(), self.add(1))) == 11

    def use_chords_in_chords(self):
        inner = chord([self.add(1, 2), self.add(3, 4)], self.total())
        assert self.value(chord([inner, self.add(5, 5)], self.total())) == 20
        assert self.value(group(inner, inner.clone())) == [10, 10]
        flat = chord([chain(self.add(1, 2), self.add(1)), self.add(1, 1)], self.total())
        assert self.value(flat) == 6
        nested = group(self.add(1, 2), group(self.add(3, 4)))
        assert self.value(chord(nested, self.of("repeat", 1))) == [3, 7]

    def use_maps(self):
        assert self.value(self.sum.map([[1, 2], [3]]).set(queue=self.queue)) == [3, 3]
        pairs = [(1, 2), (3, 4), (5, 6)]
        assert self.value(self.task.starmap(pairs).set(queue=self.queue)) == [3, 7, 11]
        chunks = self.task.chunks(pairs, 2)
        assert chunks.apply_async(queue=self.queue).get(timeout=PATIENCE) == [[3, 7], [11]]
        assert self.value(chunks.group().set(queue=self.queue)) == [[3, 7], [11]]

    def use_links(self):
        mark = self.mark()
        sent = self.add(1, 2, link=self.of("note", mark, "linked", immutable=True)).apply_async()
        assert sent.get(timeout=PATIENCE) == 3
        wait_until(lambda: lines(Path(mark)) == 1, "the callback has run")
        assert [child.get(timeout=PATIENCE) for child in sent.children] == [None]

    def fails(self, canvas, link="on_error"):
        """The errback runs, and the one who waits gets the error."""
        mark = Path(self.mark())
        getattr(canvas, link)(self.of("note_failure", str(mark)))
        with pytest.raises((ValueError, ChordError)):
            self.value(canvas)
        wait_until(lambda: lines(mark), "the errback has run")

    def use_errbacks(self):
        self.fails(self.of("fail"))
        self.fails(self.of("fail", 1), "link_error")
        self.fails(chain(self.of("fail"), self.add(1)))
        self.fails(chord([self.of("fail"), self.add(1, 2)], self.total()))
        self.fails(chord([self.of("fail"), self.add(1, 2)], self.total()), "link_error")
        self.fails(group(self.of("fail"), self.add(1, 2)), "link_error")

    def use_body_that_fails(self):
        body = self.of("fail", immutable=True)
        self.fails(chord([self.add(1, 2), self.add(1, 2)], body))

    def use_replace(self):
        assert self.value(self.of("replaced", "task")) == 3
        assert self.value(self.of("replaced", "chain")) == 3
        assert self.value(self.of("replaced", "group")) == [3, 3]
        assert self.value(chord([self.of("replaced", "task")], self.total())) == 3

    def use_add_to_chord(self):
        assert self.value(chord([self.of("grow_chord")], self.total())) == 3

    def use_canvas_in_a_task(self):
        assert self.value(self.of("fan_out")) == [6, 6, 6]

    def use_stamps(self):
        stamped = chain(self.add(1, 2), self.add(3))
        stamped.stamp(team="mail")
        assert self.value(stamped) == 6

    def use_states(self):
        assert self.value(self.of("progress")) == "PROGRESS"
        assert self.value(self.of("retry_once", self.mark())) is None

    def use_options(self):
        soon = datetime.now(UTC) + timedelta(seconds=0.1)
        for options in (
            {"countdown": 0.1},
            {"eta": soon},
            {"expires": 60},
            {"priority": 9},
            {"compression": "gzip"},
            {"task_id": uuid.uuid4().hex},
        ):
            assert self.value(self.add(1, 2, **options)) == 3
        past = self.add(1, 2, expires=datetime.now(UTC) - timedelta(seconds=1)).apply_async()
        with pytest.raises(TaskRevokedError):
            past.get(timeout=PATIENCE)
        self.add(1, 2, ignore_result=True).apply_async()

    def use_a_result(self):
        sent = chain(self.add(1, 2), self.add(3)).apply_async()
        assert sent.get(timeout=PATIENCE, interval=0.05) == 6
        assert (sent.state, sent.ready(), sent.successful(), sent.failed()) == (
            "SUCCESS",
            True,
            True,
            False,
        )
        assert sent.parent.get(timeout=PATIENCE) == 3
        assert sent.children in (None, [])
        first = self.app.AsyncResult(sent.parent.id)
        assert [one.id for one, _ in first.collect(timeout=PATIENCE)] == [first.id, sent.id]
        assert len(list(first.iterdeps())) == 2
        assert set(first.graph) == {sent.id, first.id} or len(first.graph) == 2
        assert first.info == 3
        assert first.date_done
        assert first.name == "metal_sample.tasks.add"
        assert first.worker
        assert first.as_list() == [first.id]
        seen = self.app.backend.get_task_meta(first.id, cache=False)
        assert seen["args"] == [1, 2]
        for one in (first, sent):
            one.forget()
        assert self.app.AsyncResult(sent.id).state == "PENDING"

    def use_several_results(self):
        sent = [self.add(n, n).apply_async() for n in range(3)]
        several = ResultSet(sent, app=self.app)
        assert several.join(timeout=PATIENCE) == [0, 2, 4]
        assert several.join_native(timeout=PATIENCE) == [0, 2, 4]
        assert {one: meta["result"] for one, meta in several.iter_native()} == {
            one.id: 2 * n for n, one in enumerate(sent)
        }
        assert several.completed_count() == 3
        assert several.maybe_reraise() is None
        assert several.get(timeout=PATIENCE) == [0, 2, 4]
        assert list(self.app.backend.get_many([one.id for one in sent]))
        several.forget()

    def use_a_saved_group(self):
        sent = group(self.add(1, 2), self.add(3, 4)).apply_async()
        sent.save()
        name = sent.id
        del sent  # before Celery 5.5 a second object of one result never gets it
        found = GroupResult.restore(name, app=self.app)
        assert found.get(timeout=PATIENCE) == [3, 7]
        assert found.join_native(timeout=PATIENCE) == [3, 7]
        assert found.successful()
        self.app.backend.reload_group_result(name)
        found.delete()
        assert GroupResult.restore(name, app=self.app) is None

    def use_revokes(self):
        later = [self.add(1, 2, countdown=3600).apply_async() for _ in range(3)]
        later[0].revoke()
        self.app.control.revoke([one.id for one in later[1:]])
        group(self.add(1, 2, countdown=3600)).apply_async().revoke()
        self.app.control.terminate(uuid.uuid4().hex)
        stamped = self.add(1, 2, countdown=3600)
        stamped.stamp(team="sales")
        stamped.apply_async().revoke_by_stamped_headers({"team": "sales"})
        self.app.control.revoke_by_stamped_headers({"team": "sales"})

    def use_eager(self):
        with allow_join_result():
            assert self.task.apply((1, 2)).get() == 3


USES = [name for name in vars(Uses) if name.startswith("use_")]


def as_documented(server):
    """The user of an external Redis."""
    rule = re.search(r"^user worker on >PASSWORD (.*)$", DOCUMENT.read_text(), re.M)[1]
    rights = rule.replace("+client|setinfo", "").split()  # which a Redis before 7.2 does not know
    login = ("reset", "on", f">{PASSWORD}")
    server.client.execute_command("ACL", "SETUSER", "worker", *login, *rights)


@pytest.mark.parametrize("user", ["producer", "worker", "external"])
def test_a_user_can_use_a_whole_canvas_and_its_results(start, own_redis, tmp_path, user):
    if user == "external":
        as_documented(own_redis)
    # Celery sends some parts of a canvas without a route.
    conf = CONF | {"task_default_queue": f"{tmp_path.name}-0"}
    worker = start(server=own_redis, LAB_CONF=json.dumps(conf), CONCURRENCY="4").ready()
    clients = Producer(own_redis)
    app = clients.app if user == "producer" else clients.operator
    app.backend.remove_pending_result = lambda result: result  # its end would outlive this Redis
    app.conf.task_default_queue = worker.queue
    uses, failed = Uses(app, worker.queue, tmp_path), {}
    for name in USES:
        try:
            getattr(uses, name)()
        except Exception as error:  # noqa: BLE001 - all are tried
            failed[name] = f"{type(error).__name__}: {error}"
    assert own_redis.refused() == []
    assert failed == {}
