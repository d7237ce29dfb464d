"""Ray clusters: jobs submitted to a running one, and the file for `ray up` to start one."""
