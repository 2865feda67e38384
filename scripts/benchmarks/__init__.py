"""What scripts/bench measures with: loads, meters, peers and the cases themselves."""
