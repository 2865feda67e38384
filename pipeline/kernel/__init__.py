"""System calls and facts about this host; no decisions."""
