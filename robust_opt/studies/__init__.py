"""What the studies of all papers share: options, progress, claims, attacked accuracies."""
