//! What is drawn of a study, for the page, for files and for reports: SVG and HTML from the replies of StudyService, by
//! one code. Colours are the style sheet's, so that a page can be light or dark.
