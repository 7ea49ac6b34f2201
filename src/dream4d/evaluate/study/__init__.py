"""The paper's preference study (Sec. 4, Table 1; supplement, Sec. 4): a page that asks, a file of votes, a table."""
