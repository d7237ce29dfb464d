"""Where the two jobs run: image, KubeRay, Slurm."""
