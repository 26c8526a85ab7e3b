"""The built-in task plugins, found by the harness through the entry-point group `evalsuite.tasks`."""
