"""Text to values and back: iptables command lines, listings, save and restore files."""
