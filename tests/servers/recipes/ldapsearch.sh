krbrefresh exec -- ldapsearch -Y GSSAPI -N -Q -LLL -H "$LDAP_URL" -b "$LDAP_BASE" \
    "(sAMAccountName=$1)" userPrincipalName
