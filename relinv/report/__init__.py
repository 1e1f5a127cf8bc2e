"""What a run showed: tables with intervals, charts, contact sheets, and the pages that hold them."""
