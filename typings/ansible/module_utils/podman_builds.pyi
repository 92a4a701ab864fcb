from podman_builds import *
