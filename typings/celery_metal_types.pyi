"""Types of the dictionaries that roles, modules and playbooks exchange.

Only mypy reads this file; hosts do not get it. Ansible loads filters and modules as single files,
so they import these names under TYPE_CHECKING. At run time the values are plain dictionaries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, final

# What the user wrote into a section of a unit file.
QuadletValue = str | int | float | bool | list[str | int | float | bool]
Quadlet = Mapping[str, Mapping[str, QuadletValue]]

# ------------------------------------------------------------------------------------------
# The plan, from roles/capacity

class Autoscale(TypedDict):
    """The bounds of Celery's --autoscale per instance, in processes (prefork) or greenlets."""

    min: int
    max: int

class Queue(TypedDict):
    """One queue with every default filled in, and `unit`: its name as units and files take it."""

    name: str
    unit: str
    workload: str
    pool: str
    weight: int
    concurrency: Literal["auto"] | int | Autoscale
    instances: int
    memory_per_process_mb: int
    tmp_mb: Literal["auto"] | int
    drain_seconds: int
    acks_late: bool
    prefetch: int
    time_limit_seconds: int
    max_tasks_per_child: int
    latency_objective_seconds: int
    environment: Mapping[str, str]
    secrets: Literal["all"] | list[str]
    hosts: Literal["all"] | list[str]
    queues: list[str]
    queue_order: str
    volumes: list[str]
    ports: list[str]
    devices: list[str]
    gpus: list[str]
    quadlet: Quadlet

class Host(TypedDict):
    """One host: vcpus that its processes may use, memory_mb in all, numa_nodes for a note only."""

    name: str
    vcpus: int
    memory_mb: int
    numa_nodes: int

class RedisLimits(TypedDict):
    memory_mb: Literal["auto"] | int

class BeatKeys(TypedDict):
    """What Beat has besides its memory, as a queue has it."""

    environment: Mapping[str, str]
    secrets: Literal["all"] | list[str]
    volumes: list[str]
    quadlet: Quadlet

class Limits(TypedDict):
    """What the planner keeps to; redis is None, beat_mb and sentinel_mb are 0 where none runs."""

    reserve_mb: Literal["auto"] | int
    process_factor: int
    threads_per_vcpu: int
    greenlets_per_vcpu: int
    main_process_mb: int
    beat_mb: int
    beat: BeatKeys
    sentinel_mb: int
    redis: RedisLimits | None

class QueueReasons(TypedDict):
    concurrency: str
    memory_mb: str
    tmp_mb: str
    cpu_weight: str

class PlannedQueue(TypedDict):
    """A queue's row: concurrency, processes, memory_mb, tmp_mb and cpu_weight of one instance."""

    name: str
    unit: str
    pool: str
    workload: str
    weight: int
    instances: int
    concurrency: int
    autoscale: Autoscale | None
    processes: int
    memory_per_process_mb: int
    tmp_mb: int
    memory_mb: int
    cpu_weight: int
    drain_seconds: int
    acks_late: bool
    prefetch: int
    time_limit_seconds: int
    max_tasks_per_child: int
    environment: Mapping[str, str]
    secrets: Literal["all"] | list[str]
    queues: list[str]
    queue_order: str
    volumes: list[str]
    ports: list[str]
    devices: list[str]
    gpus: list[str]
    quadlet: Quadlet
    reasons: QueueReasons

class ShareReasons(TypedDict):
    memory_mb: str
    cpu_weight: str

class Share(TypedDict):
    """What Beat, or a Sentinel, gets of a host."""

    memory_mb: int
    cpu_weight: int
    reasons: ShareReasons

class PlannedBeat(BeatKeys, Share): ...

class RedisReasons(ShareReasons):
    maxmemory_mb: str

class RedisShare(TypedDict):
    memory_mb: int
    maxmemory_mb: int
    cpu_weight: int
    reasons: RedisReasons

class Totals(TypedDict):
    processes: int
    process_cap: int
    process_factor: int
    workers_mb: int
    beat_mb: int
    redis_mb: int
    sentinel_mb: int
    reserve_mb: int
    free_mb: int
    memory_mb: int

@final
class Plan(TypedDict):
    """What runs on one host, kept there as /etc/celery-metal/plan.json."""

    host: Host
    queues: list[PlannedQueue]
    beat: PlannedBeat | None
    redis: RedisShare | None
    sentinel: Share | None
    totals: Totals

@final
class Refusal(TypedDict):
    """In the place of a plan, where there is none."""

    error: str

class Findings(TypedDict):
    """Text for an operator: what ends the run, and what does not; each may be empty."""

    problems: str
    notes: str

class Egress(TypedDict):
    """What the templates of the workers' network know; sets are by the version of IP."""

    mark: str
    network: str
    id: str
    gateway: str
    bridge: str
    subnet: str
    any: bool
    listed: dict[int, list[str]]
    brokers: dict[int, list[str]]
    ports: list[int]

class Units(TypedDict):
    """What celery_units is to write: path to content, path to target, path to who needs it."""

    files: dict[str, str]
    links: dict[str, str]
    needed: dict[str, str]

# ------------------------------------------------------------------------------------------
# The status of workers, from the module celery_status

class Worker(TypedDict):
    """One worker; None is what nobody knows, since is in seconds since 1970."""

    queue: str
    queues: list[str]
    instance: str
    state: str
    restarts: int
    concurrency: int | None
    busy: int | None
    done: int | None
    version: str | None
    since: int | None

@final
class HostStatus(TypedDict):
    """What the module returns; beat is empty where Beat is not to run."""

    workers: list[Worker]
    beat: str
    destination: str

@final
class NoAnswer(TypedDict, total=False):
    """Why a module returned no result: its own error, or Ansible's message."""

    error: str
    msg: str
    unreachable: bool

# ------------------------------------------------------------------------------------------
# Signs of life in Redis, from the module celery_lives

class Silent(TypedDict):
    """A worker without a fresh sign of life: its age, or none, or queues that it does not have."""

    seconds: int | None
    missing: list[str]

# ------------------------------------------------------------------------------------------
# What Redis holds, from the module celery_backlog

class RedisUse(TypedDict, total=False):
    """In bytes; a limit of 0 is none. Empty where it is not known."""

    used: int
    limit: int

class Held(TypedDict):
    """Tasks of a queue in the list of one worker; beats: whether it has left a sign of life."""

    node: str
    queue: str
    tasks: int
    beats: bool

class Replica(TypedDict):
    address: str
    state: str
    behind_bytes: int
    lag_seconds: int

class Replication(TypedDict):
    """count: replicas that min-replicas-to-write counts, None where that is 0."""

    primary: str
    replicas: list[Replica]
    count: int | None

class Lengths(TypedDict):
    """Tasks by queue that wait and that were put aside, and those that workers hold.

    consumers: undeclared queue to the workers that consume it.
    """

    waiting: dict[str, int]
    consumers: dict[str, list[str]]
    dead: dict[str, int]
    held: list[Held]

class Counted(TypedDict):
    """What workers have counted of a queue's tasks within the last `seconds`.

    wait: how many had waited up to each of bounds_ms, beyond the one before; last, longer ones.
    per_hour: how many ended by each of Celery's ways.
    """

    bounds_ms: list[int]
    wait: list[int]
    per_hour: dict[str, int]
    seconds: int

@final
class Backlog(Lengths):
    """error: why Redis gave no answer, or nothing.

    oldest: queue to the seconds for which its next task has waited, where that is known.
    """

    error: str
    counted: dict[str, Counted]
    oldest: dict[str, int]
    run_id: str
    unconsumed: dict[str, int]
    paused: list[Pause]
    is_complete: bool | None
    memory: RedisUse
    replication: Replication | None
    holders: Mapping[str, Any] | None  # as the host of Redis reports them: unchecked
    secrets: Mapping[str, Mapping[str, str]]

# ------------------------------------------------------------------------------------------
# The fleet, from playbooks/filter_plugins/fleet.py; status.yml prints it as JSON, too

class FleetRedis(TypedDict):
    """What the inventory says of Redis."""

    host: str  # the address of one that is the user's own
    alarm_percent: NotRequired[int]  # above which share of its memory it is nearly full
    replicas_required: NotRequired[int]  # with fewer a primary takes no tasks; 0 where not ours
    names: NotRequired[
        Mapping[str, str]
    ]  # IP address to host of the inventory, of those that elect a primary
    reports: NotRequired[Sequence[str]]  # of hosts that left and of certificates that end

class FleetHost(TypedDict):
    """state: "ok" when it answered; else `why` says why not."""

    state: str
    why: str

class FleetWorker(Worker):
    """waiting: tasks in its queues, None where Redis does not know them."""

    host: str
    waiting: int | None

class FleetMemory(TypedDict):
    """In bytes; alarm: whether it is more than redis_memory_alarm_percent."""

    used: int
    limit: int
    percent: int
    alarm: bool

class FleetReplica(Replica):
    host: str

class FleetReplication(TypedDict):
    """absent: hosts of Redis without a role. missing: replicas short of replicas_required."""

    primary: str
    host: str
    replicas: list[FleetReplica]
    count: int | None
    absent: list[str]
    required: int
    missing: int

class FleetHeld(Held):
    """listed: whether the worker is among those that answered."""

    listed: bool

class Wrong(TypedDict):
    """Something that is wrong, and its remedy; fix may be empty."""

    what: str
    fix: str

class FleetQueue(TypedDict):
    """What a queue's workers have done within the last `seconds`; 0 where nothing is known.

    objective: latency_objective_seconds; 0 for none. oldest: seconds of the next task; None where
    that is not known. half, most: seconds that 50 and 95 of 100 tasks had waited at most, None
    where none has begun; as far as the histogram tells. late_percent: how many had waited for
    longer than the objective, at least.
    """

    queue: str
    objective: int
    waiting: int
    oldest: int | None
    seconds: int
    started: int
    half: float | None
    most: float | None
    late_percent: float | None
    per_hour: dict[str, int]

class Fleet(TypedDict):
    """wrong: the worst first. destinations: host to the one on record there.

    whole: whether these are all hosts.
    """

    wrong: list[Wrong]
    destination: str | None
    destinations: dict[str, str]
    whole: bool
    hosts: dict[str, FleetHost]
    workers: list[FleetWorker]
    queues: list[FleetQueue]
    beat: dict[str, str]
    redis_host: str
    redis_error: str
    redis_memory: FleetMemory | None
    redis_replication: FleetReplication | None
    redis_reports: list[str]
    waiting: dict[str, int]
    consumers: dict[str, list[str]]
    unconsumed: dict[str, int]
    is_complete: bool | None
    held: list[FleetHeld]
    dead: dict[str, int]
    paused: list[Pause]

# ------------------------------------------------------------------------------------------
# A Redis of the user's own

class Endpoint(TypedDict):
    """An address, as options of the modules that ask Redis over the network.

    With Sentinels host is empty and port is 0; each of them is a host and a port.
    """

    tls: bool
    user: str
    database: int
    host: str
    port: int
    sentinels: NotRequired[list[list[str | int]]]
    master_name: NotRequired[str]
    sentinel_auth: NotRequired[bool]

class AskOptions(TypedDict, total=False):
    """How celery_backlog asks: the Redis of its host, or one over the network."""

    database: int
    external: Endpoint

class DeadLetter(TypedDict):
    """A row of the list of dead letters; what a letter does not tell is null or empty."""

    task: str
    id: str
    queue: str
    at: int | None
    crashes: int | None
    worker: str
    reason: str
    arguments: str
    size: int

class DeadLetters(TypedDict):
    """What the module celery_dead returns."""

    total: int
    is_complete: bool
    all_queues: bool
    lists: dict[str, int]
    rows: list[DeadLetter]
    whole: Mapping[str, Any]
    text: str
    done: int
    gone: int
    refused: int

class Pause(TypedDict):
    """A queue that is paused; name: with the prefix of its app. What is not known is empty."""

    queue: str
    name: str
    by: str
    at: int | None
    reason: str

class Unconfirmed(TypedDict):
    """A worker that has not confirmed a pause. ahead: tasks that its pool has yet to begin."""

    node: str
    ahead: int | None
    silent_seconds: int | None  # null where it gives signs of life

class QueueTasks(TypedDict):
    """What the module celery_queue returns."""

    waiting: dict[str, int]
    is_complete: bool
    done: int
    gone: int
    refused: int
    paused: list[Pause]
    workers: int
    claimed: int
    unconfirmed: list[Unconfirmed]
    is_kept: bool
    unsaved: str  # why a power cut may undo it; empty where it is on the disk

class Finding(TypedDict):
    kind: str
    seen: str
    remedy: str

class Survey(TypedDict):
    """What the module celery_survey returns."""

    server: str
    run_id: str
    database: int
    findings: list[Finding]
    notes: list[str]

class SurveyOptions(Endpoint):
    """What it is called with; the keys for Sentinels are there, too."""

    password: str
    ca: str
    certificate: str
    queues: list[str]
