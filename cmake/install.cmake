# `cmake --install`: headers, the static library, and the package files for find_package(fastrnn).
# Wheels take only the component "python", so none of this ends up in one.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fastrnn)
install(DIRECTORY csrc/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(TARGETS fastrnn EXPORT fastrnn ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
install(EXPORT fastrnn NAMESPACE fastrnn:: FILE fastrnnTargets.cmake DESTINATION ${package_dir}
        COMPONENT cpp)

configure_package_config_file(
  cmake/fastrnnConfig.cmake.in ${PROJECT_BINARY_DIR}/fastrnnConfig.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/fastrnnConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/fastrnnConfig.cmake
              ${PROJECT_BINARY_DIR}/fastrnnConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT cpp)
