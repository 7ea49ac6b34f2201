"""What finished scenes are worth: as numbers, by the toy world's truth or by CLIP, and by people."""
