"""Theory: robust linear models, Gaussian models, and explanations of adversarial examples."""
