"""Controllers: each looks at what is, decides, and acts; a bad pass is logged and survived."""
