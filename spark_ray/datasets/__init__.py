"""Floor 4: Ray Data. From a folder of video to a published, versioned dataset, and what follows."""

import os

# Ray Data reads this as it is imported. With a thread that fetches metadata, the end of each task
# is seen one step of its loop later: a tenth of a second in which a CPU has nothing to do.
os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")
