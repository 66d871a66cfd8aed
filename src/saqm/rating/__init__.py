"""A reader study on one's own machine: the plan and its journal (`study`), and the page that readers see (`server`)."""
