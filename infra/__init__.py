"""Where the two jobs run: container image, Kubernetes, Slurm, Ray, and the demo."""
