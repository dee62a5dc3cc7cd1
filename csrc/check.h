// Misuse of the API is reported here, once, before any kernel runs.
#pragma once

#include <sstream>
#include <stdexcept>

#define FASTRNN_CHECK(condition, message)              \
  do {                                                 \
    if (!(condition)) {                                \
      std::ostringstream fastrnn_text;                 \
      fastrnn_text << message;                         \
      throw std::invalid_argument(fastrnn_text.str()); \
    }                                                  \
  } while (false)
