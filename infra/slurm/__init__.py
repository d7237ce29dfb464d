"""Jobs on a Slurm cluster: the scripts, and what is asked of its commands."""
