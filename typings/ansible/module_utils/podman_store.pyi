from podman_store import *
