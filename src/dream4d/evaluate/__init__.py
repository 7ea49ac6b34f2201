"""What results are worth: by people."""
