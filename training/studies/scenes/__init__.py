"""Studies of SigLIP 2's objectives on scenes of emoji."""
