"""What a malicious device or host does, one small class each."""
