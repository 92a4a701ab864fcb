"""The project's checks as jobs: what they are, when each one starts, and what it cost."""
