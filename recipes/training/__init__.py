"""What the training stages share: settings and resuming, loading, manifests, the teacher's features."""
