"""Studies: many runs that differ in what is asked, side by side in one table and one picture."""
