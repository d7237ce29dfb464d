"""Jobs on Kubernetes: their manifests, and the place that submits them."""
