"""How robust a network is: accuracy under attack, AutoAttack, trust checks, verdicts."""
