"""ansible-playbook in a fork of a process that has loaded Ansible (forks.py)."""

import atexit

from ansible.cli.playbook import main
from ansible.utils.path import cleanup_tmp_file

if __name__ == "__main__":
    # The directory with the packed modules is the server's, and serves its next forks, too.
    atexit.unregister(cleanup_tmp_file)
    main()
