"""Floor 4: Ray Data. From a folder of video to a published, versioned dataset, and what follows."""
