"""What runs as PID 1 in a worker container: Celery, told by the environment what to be.

    python -m celery_metal_runtime                  # a worker
    python -m celery_metal_runtime worker -E        # a worker, with an option of Celery's own
    python -m celery_metal_runtime beat             # the schedule, on one host at a time
    python -m celery_metal_runtime inspect ping     # any other Celery command, same broker
    python -m celery_metal_runtime run COMMAND...   # any other command, as celery-metal-run
    python -m celery_metal_runtime versions         # which Celery this is, or why it is refused

The environment; an empty variable counts as unset:

CELERY_APP
    The app, as for ``celery -A``: ``metal_sample.celery:app``. Required.
CELERY_METAL_QUEUE
    The worker's name, and the one queue that it consumes. Required for a worker.
CELERY_METAL_QUEUES
    Instead, the queues that it consumes, in order: ``a,b``.
CELERY_METAL_QUEUE_ORDER
    Of several queues ``round_robin`` (default) takes from each in turn, ``priority`` from the first
    that has tasks.
CELERY_METAL_POOL
    ``prefork`` (default), ``threads``, ``gevent`` or ``solo``.
CONCURRENCY
    How many processes, threads or greenlets; goes before all that follow.
CPU_COUNT
    Reckon with so many CPUs, whatever the machine has; goes before the plan.
CELERY_METAL_PLAN_CONCURRENCY, CELERY_METAL_PLAN_AUTOSCALE
    What the planner chose for this host: a number, or ``max,min`` for Celery's autoscaler.
    Where none of these is set, Celery counts the CPUs (from 5.7 its quota, too).
CELERY_METAL_PROCESS_FACTOR
    Processes never exceed the CPUs times this (4).
CELERY_METAL_INSTANCE, CELERY_METAL_HOST
    Which of the queue's workers (1) on which host (the container's name): for the node name,
    which no other worker of the broker may have.
CELERY_METAL_BOOT
    The machine and its boot: systemd's ``%m%b`` (the kernel's boot ID). A worker that finds the
    claims of its node name in Redis, from another boot, waits 10 s whether their owner lives.
CELERY_METAL_LOGLEVEL
    ``debug`` to ``critical`` (``info``).
CELERY_METAL_BROKER
    ``redis://host:6379/0``, ``rediss://host:6379/0`` (with TLS) or
    ``redis+socket:///path?virtual_host=0``, with a user but without the password. For the primary
    that Sentinels have elected ``sentinel://host:26379,host:26379/0?master_name=NAME``, or
    ``sentinels://`` with TLS to both; the user and its password are for both, or for Redis alone
    with ``&sentinel_auth=no``. With ``&replicas=1`` a task counts as sent when all replicas have
    it, or as many while others are down. Unset: what the app itself says.
CELERY_METAL_BROKER_VARIABLES
    Names, with commas between, of variables that the app reads the broker from: each is set to a
    URL for redis-py, with the password and the paths of the certificates. Not for Sentinels.
CELERY_METAL_RESULT_BACKEND
    Where results go, likewise, or what else Celery takes as ``result_backend``: ``django-db``,
    ``db+postgresql://host/name``; without a password, or ``secret:NAME`` for a secret that holds
    it. Unset: an app that keeps results in a Redis keeps them in the
    broker's; any other stays as it is.
CELERY_METAL_PASSWORD_FILE
    Holds the password for both (``/run/secrets/celery-redis-password``, which may be absent). It is
    read again for each connection.
CELERY_METAL_TLS_CA_FILE
    With TLS, holds what the server's certificate is checked by (``/run/secrets/celery-redis-ca``;
    where that is absent, the system's trust store decides).
CELERY_METAL_TLS_CERTIFICATE_FILE
    With TLS, holds the certificate that is shown to the server, and its key
    (``/run/secrets/celery-redis-certificate``, which may be absent).
CELERY_METAL_WATCHDOG_SECONDS
    systemd's WatchdogSec (0: off).
CELERY_METAL_DRAIN_SECONDS
    How long running tasks may go on when the worker is told to stop (0: without end). What still
    runs then is interrupted, and goes back to its queue.
CELERY_METAL_ACKS_LATE
    ``true`` (default): a task is acknowledged at its end, and runs again when its worker dies.
    ``false``: at its begin.
CELERY_METAL_PREFETCH
    Tasks that a worker takes from the queue, for each that it can run at once (1).
CELERY_METAL_AHEAD_MB
    Memory for tasks that wait in the worker for their ETA or countdown: how many it takes, unless
    the app sets ``worker_eta_task_limit``. Unset: without end.
CELERY_METAL_MAX_MEMORY_PER_CHILD_MB
    With prefork, a process that has used more memory is replaced after its task.
CELERY_METAL_MAX_TASKS_PER_CHILD
    With prefork, a process is replaced after so many tasks (0: never for that).
CELERY_METAL_TIME_LIMIT_SECONDS
    With prefork, a process whose task takes longer is killed; the task goes back to its queue, or
    has failed where CELERY_METAL_ACKS_LATE is ``false``. Unset: no limit.
CELERY_METAL_TMPFS
    Directories, with commas between, that are memory of this worker and gone with its container. A
    worker ends, drained, when files of tasks that were killed fill one. Unset: none is looked at.
CELERY_METAL_VISIBILITY_SECONDS
    What no worker has acknowledged for so long goes back to its queue: longer than any task. The
    same for all workers of one Redis.
CELERY_METAL_EXPORT
    Names, with commas between, of secrets that the app finds as environment variables: each is
    read from the file of its name in CELERY_METAL_SECRETS_DIRECTORY (``/run/secrets``).
CELERY_LOADER
    Celery's own. ``run`` sets it to a loader that points each app at the same broker, and keeps
    what it was in CELERY_METAL_LOADER. An app that names its loader itself has to call `configure`.
NOTIFY_SOCKET
    systemd's, as Podman passes it on. Unset: nothing is told.

Exit codes: Celery's own; 64 for a setting or a version that cannot be used; 70 when the worker has
found itself stuck and gave up, so that systemd starts a new one; 1 when it could not even find
that, or when the app cannot be loaded. ``run`` ends as its command does, or with 127 where that is
not found and 126 where it cannot be run.

Nothing but the standard library is imported here: gevent must patch it before others do.
"""

from celery_metal_runtime.broker import configure

__all__ = ["configure"]
